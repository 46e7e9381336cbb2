"""The methods that label geometries and that models are held to."""
