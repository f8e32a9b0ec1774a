"""Compare, frontier, fit, catalogue, report: measurements become a decision."""
