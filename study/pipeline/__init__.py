"""The story of one study: from options to leaderboard."""
