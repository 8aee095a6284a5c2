//! Rust source, as far as style is concerned: code, comments and tests told apart without a parser.

/// A source file, split.
#[derive(Clone, Debug)]
pub struct Source {
    /// By line: what is left without comments and without what stands in quotes.
    pub code: Vec<String>,
    /// By line: the comments, documentation included.
    pub comments: Vec<String>,
    /// By line: whether it belongs to an item under `#[cfg(test)]` or `#[test]`.
    pub test: Vec<bool>,
}

/// What the scanner is inside of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    Code,
    LineComment,
    /// Block comments nest.
    BlockComment(usize),
    Quotes,
    /// A raw string, and how many `#` end it.
    Raw(usize),
}

impl Source {
    /// Splits the text of a file.
    pub fn new(text: &str) -> Source {
        let mut scanner = Scanner {
            code: String::new(),
            comments: String::new(),
            inside: Inside::Code,
        };
        let chars: Vec<char> = text.chars().collect();
        let mut at = 0;
        while at < chars.len() {
            at += scanner.take(&chars[at..], chars[..at].last().copied());
        }
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let code = lines(&scanner.code);
        let test = test_lines(&code);
        Source {
            comments: lines(&scanner.comments),
            code,
            test,
        }
    }

    /// The lines of code outside tests, with their numbers from 1.
    pub fn code_outside_tests(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.iter().zip(&self.test).enumerate();
        lines
            .filter(|(_, (_, test))| !**test)
            .map(|(index, (line, _))| (index + 1, line.as_str()))
    }

    /// Every function outside tests: its first line's number from 1, its name, its lines.
    pub fn functions(&self) -> Vec<(usize, String, usize)> {
        let mut functions = Vec::new();
        for (number, line) in self.code_outside_tests() {
            let Some(name) = function_name(line) else {
                continue;
            };
            let end = end_of_item(&self.code, number - 1);
            functions.push((number, name.to_owned(), end + 2 - number));
        }
        functions
    }
}

struct Scanner {
    code: String,
    comments: String,
    inside: Inside,
}

impl Scanner {
    /// Takes the next character or mark of `rest` and says how many characters that were.
    fn take(&mut self, rest: &[char], before: Option<char>) -> usize {
        let starts = |mark: &str| mark.chars().eq(rest.iter().copied().take(mark.len()));
        if rest[0] == '\n' {
            self.code.push('\n');
            self.comments.push('\n');
            if self.inside == Inside::LineComment {
                self.inside = Inside::Code;
            }
            return 1;
        }
        match self.inside {
            Inside::Code => self.take_code(rest, before),
            Inside::LineComment => self.comment(rest[0]),
            Inside::BlockComment(depth) if starts("*/") => {
                self.inside = if depth == 1 {
                    Inside::Code
                } else {
                    Inside::BlockComment(depth - 1)
                };
                2
            }
            Inside::BlockComment(depth) if starts("/*") => {
                self.inside = Inside::BlockComment(depth + 1);
                2
            }
            Inside::BlockComment(_) => self.comment(rest[0]),
            // An escaped line break is left to the branch above, which keeps the lines counted.
            Inside::Quotes if rest[0] == '\\' && rest.get(1) != Some(&'\n') => 2,
            Inside::Quotes if rest[0] == '"' => self.end_of_quotes(1),
            Inside::Quotes => 1,
            Inside::Raw(marks) => {
                let closes =
                    rest[0] == '"' && rest[1..].iter().take_while(|c| **c == '#').count() >= marks;
                if closes {
                    self.end_of_quotes(1 + marks)
                } else {
                    1
                }
            }
        }
    }

    fn take_code(&mut self, rest: &[char], before: Option<char>) -> usize {
        let starts = |mark: &str| mark.chars().eq(rest.iter().copied().take(mark.len()));
        if starts("//") {
            self.inside = Inside::LineComment;
            return 2;
        }
        if starts("/*") {
            self.inside = Inside::BlockComment(1);
            return 2;
        }
        if rest[0] == '"' {
            self.code.push('"');
            self.inside = Inside::Quotes;
            return 1;
        }
        let in_a_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
        if rest[0] == 'r' && (!in_a_word || before == Some('b')) {
            let marks = rest[1..].iter().take_while(|c| **c == '#').count();
            if rest.get(1 + marks) == Some(&'"') {
                self.code.push('"');
                self.inside = Inside::Raw(marks);
                return 2 + marks;
            }
        }
        if rest[0] == '\'' {
            return self.take_tick(rest);
        }
        self.code.push(rest[0]);
        1
    }

    /// A character in ticks, or the tick of a lifetime.
    fn take_tick(&mut self, rest: &[char]) -> usize {
        let length = match rest.get(1) {
            Some('\\') => rest
                .iter()
                .skip(3)
                .position(|c| *c == '\'')
                .map(|more| more + 4),
            Some(_) if rest.get(2) == Some(&'\'') => Some(3),
            _ => None,
        };
        self.code
            .push_str(if length.is_some() { "''" } else { "'" });
        length.unwrap_or(1)
    }

    fn comment(&mut self, c: char) -> usize {
        self.comments.push(c);
        1
    }

    fn end_of_quotes(&mut self, length: usize) -> usize {
        self.code.push('"');
        self.inside = Inside::Code;
        length
    }
}

/// Marks the items that follow `#[cfg(test)]` and `#[test]`.
fn test_lines(code: &[String]) -> Vec<bool> {
    let mut test = vec![false; code.len()];
    for (index, line) in code.iter().enumerate() {
        let line = line.trim_start();
        if line.starts_with("#[cfg(test)]")
            || line.starts_with("#[cfg(all(test")
            || line.starts_with("#[test]")
        {
            let end = end_of_item(code, index);
            test[index..=end].fill(true);
        }
    }
    test
}

/// The last line of the item that begins at `start`: where its braces close, or its semicolon.
fn end_of_item(code: &[String], start: usize) -> usize {
    let mut depth = 0usize;
    for (index, line) in code.iter().enumerate().skip(start) {
        let mut closed = false;
        for c in line.chars() {
            match c {
                '{' | '(' | '[' => depth += 1,
                '}' | ')' | ']' => {
                    depth = depth.saturating_sub(1);
                    closed |= depth == 0 && c == '}';
                }
                ';' => closed |= depth == 0,
                _ => {}
            }
        }
        if closed && depth == 0 {
            return index;
        }
    }
    code.len().saturating_sub(1)
}

/// The name behind `fn` where the line begins a function.
fn function_name(line: &str) -> Option<&str> {
    let mut words = line
        .trim_start()
        .split_inclusive(|c: char| c.is_whitespace())
        .peekable();
    while let Some(word) = words.next() {
        let word = word.trim();
        if word == "fn" {
            let name = words.peek()?;
            return name
                .split(|c: char| !(c.is_alphanumeric() || c == '_'))
                .next();
        }
        let modifier = word.starts_with("pub")
            || ["const", "async", "unsafe", "extern", "\"\"", "in"].contains(&word);
        if !modifier && !word.ends_with(')') {
            return None;
        }
    }
    None
}

/// Whether `word` stands in `line` as a word of its own.
pub fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part_of_word)
            && !line[at + word.len()..]
                .chars()
                .next()
                .is_some_and(part_of_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_comments_are_not_code() {
        let source = Source::new(
            "let a = \"un//safe\"; // why\nlet b = r#\"x\"y\"#; /* c\n d */ let e = '\"';\n",
        );
        assert_eq!(
            source.code,
            ["let a = \"\"; ", "let b = \"\"; ", " let e = '';"]
        );
        assert_eq!(source.comments, [" why", " c", " d "]);
    }

    #[test]
    fn ticks_of_lifetimes_do_not_open_anything() {
        let source = Source::new("fn f<'a>(x: &'a str) -> char { '\\'' } // end");
        assert_eq!(source.code, ["fn f<'a>(x: &'a str) -> char { '' } "]);
        assert_eq!(
            Source::new("let a = ['\\n', '\\u{1F600}', b'x'];").code,
            ["let a = ['', '', b''];"]
        );
    }

    #[test]
    fn an_escaped_line_break_keeps_the_lines_counted() {
        let source = Source::new("let a = \"one \\\n    two\";\nlet b = 1;\n");
        assert_eq!(source.code, ["let a = \"", "\";", "let b = 1;"]);
    }

    #[test]
    fn tests_are_told_from_code() {
        let source =
            Source::new("fn a() {\n}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n");
        assert_eq!(source.test, [false, false, true, true, true, true, false]);
        let names: Vec<_> = source
            .functions()
            .into_iter()
            .map(|(_, name, lines)| (name, lines))
            .collect();
        assert_eq!(names, [("a".to_owned(), 2), ("c".to_owned(), 1)]);
    }

    #[test]
    fn functions_are_measured_to_their_closing_brace() {
        let source = Source::new(
            "    pub(crate) const fn long(\n        a: [u8; 3],\n    ) -> u8 {\n        1\n    }\n",
        );
        assert_eq!(source.functions(), [(1, "long".to_owned(), 5)]);
        assert_eq!(
            Source::new("fn declared();\nfn next() {}\n")
                .functions()
                .len(),
            2
        );
        assert_eq!(
            Source::new("let f: fn(u8) = g;\ntype F = fn();\n").functions(),
            []
        );
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("unsafe {", "unsafe"));
        assert!(!has_word("#![forbid(unsafe_code)]", "unsafe"));
    }
}
