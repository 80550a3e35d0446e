"""The ground: what every floor may use. It imports nothing of this package."""
