"""What computes the losses: one folder or file for each kind of device."""
