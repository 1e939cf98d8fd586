"""Human tasks: opened, answered, expired and cancelled in one place, whoever asks and whoever answers."""
