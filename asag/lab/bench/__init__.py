"""What ASAG costs: paired measurements of the operator, of a guided step and of whole pictures."""
