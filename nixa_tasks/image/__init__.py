"""The installer image: cached, verified, delivered."""
