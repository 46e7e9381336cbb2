"""Replicas at constant temperature: equations of motion, runs that go on after any stop, what they leave on disk."""
