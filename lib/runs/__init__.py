"""How a run is stored, executed, resumed and swept."""
