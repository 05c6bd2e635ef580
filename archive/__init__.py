"""The tree: identity, layout, publishing, manifests, header reading; and the root command."""
