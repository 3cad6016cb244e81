"""The machines: reached, known by their keys, asked what they are."""
