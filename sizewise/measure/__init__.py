"""Model x task x meters -> measurements: metrics, statistics, machine, ledger."""
