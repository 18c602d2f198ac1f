"""What backends share that make images elsewhere: patience, calls in flight, and answers."""
