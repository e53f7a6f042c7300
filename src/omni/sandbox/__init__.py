"""A simulated Evolution API with a phone, and a simulated Hive agent, on the real wire formats.

``server.Sandbox`` holds them all; ``loopback.serve_on_loopback`` serves any of them inside a test.
"""
