"""Objects of a user's own Python in processes of their own, perhaps of another virtual environment."""
