"""Learning rate schedules registered with fairseq."""
