"""The face towards doit: one module a family of tasks."""
