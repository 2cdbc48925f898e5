"""A run on the screen: lines of text, and the live panel, drawn from events by a run or by who watches it."""
