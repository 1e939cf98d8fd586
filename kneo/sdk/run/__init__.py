"""What happens while a run is followed."""
