"""Many runs: comparisons and fair tuning."""
