"""Questions asked with the public interface: the report on a model, and the essay's figures, computed."""
