"""A simulated Evolution API with a phone, and a simulated Hive agent, on the real wire formats."""
