"""Commands of the user, run when a study settled or an instance came."""
