"""Small models that train on the spot, and the data they need; none of it knows the rest of the library."""
