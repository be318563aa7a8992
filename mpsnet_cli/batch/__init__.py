"""Many clips: plan, run, resume, report."""
