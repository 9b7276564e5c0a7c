"""What containerd calls: the Task and Sandbox services, and the events they tell it of."""
