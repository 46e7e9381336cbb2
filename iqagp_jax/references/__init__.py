"""The methods that models are held to: GFN2-xTB at once, density functional theory as a campaign that may take days."""
