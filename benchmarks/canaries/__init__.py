"""What evidence and canaries cost: starts, reconciliations, the settlement of counted runs, and trials."""
