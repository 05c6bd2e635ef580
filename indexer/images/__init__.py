"""Pictures for people: a frame rendered in a confined process, a contact sheet of a study."""
