"""From next-token distributions to text and to forecasts."""
