"""How figures are made: studies over seeds, tables of results."""
