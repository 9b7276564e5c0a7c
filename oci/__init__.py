"""Documents of the Open Container Initiative as typed data."""
