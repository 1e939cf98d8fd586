"""Records of the system: frozen data and its legal transitions. No I/O."""
