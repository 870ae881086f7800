"""Training the embedded model on scenes that are ray-cast on the device while it trains: nothing is stored, none comes twice."""
