"""How a gradient moves parameters. A true freeze (masks) is the optimizer's business, not the adapter's."""
