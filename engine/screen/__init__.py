"""What a person sees: the menu, console lines, the report."""
