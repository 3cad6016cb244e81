"""From here to there: decided, installed, switched, verified."""
