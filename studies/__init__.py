"""What is claimed of interventions and trainers, measured: `make experiments`, `python -m studies.ppo_study`."""
