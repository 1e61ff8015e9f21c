"""What happens after a round: its gate, its alarms, and whether another round begins."""
