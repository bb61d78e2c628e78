"""Where it runs: all of Ray Tune, Ray Train and actors."""
