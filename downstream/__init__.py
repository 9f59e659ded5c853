"""From frames to a number: tasks, protocols, metrics, results."""
