"""What a tracker shows of a run, laid out: the workspace view of a W&B project, reports, and rules on its server."""
