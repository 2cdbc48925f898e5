"""What ends a run from outside: signals, launchers that die, ranks that are lost."""
