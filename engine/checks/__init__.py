"""What a run is told: what its preset lacks, before it trains; what its text is too small for, before and during it."""
