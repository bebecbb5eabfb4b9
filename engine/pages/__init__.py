"""What becomes HTML: charts, the panels that a system asks for, and the template with its style."""
