"""What people look at: plans, tables, the live view."""
