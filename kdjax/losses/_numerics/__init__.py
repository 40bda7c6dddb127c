"""The mathematics that several losses share: no loss is here, and nothing is checked here."""
