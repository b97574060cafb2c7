"""What people touch: bundles, recommendations, reasons, reports, the command line."""
