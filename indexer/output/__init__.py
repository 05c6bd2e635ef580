"""Results for people and programs: five formats, tables, and nothing dangerous on a terminal."""
