//! Writes files as `torch.save` does: an archive with a pickle and one entry a storage. Sums of entries are left at 0.

/// A tensor of f16 numbers.
pub(crate) struct Saved<'a> {
    pub(crate) name: &'a str,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a [u8],
}

/// The file of a training run: `{"global_step": …, "state_dict": {…}}`.
pub(crate) fn file(tensors: &[Saved<'_>]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.entry("archive/data.pkl", &pickle(tensors));
    archive.entry("archive/version", b"3\n");
    for (number, tensor) in tensors.iter().enumerate() {
        archive.entry(&format!("archive/data/{number}"), tensor.bytes);
    }
    archive.finish()
}

fn text(text: &str) -> Vec<u8> {
    let length = (text.len() as u32).to_le_bytes();
    [&b"X"[..], &length, text.as_bytes()].concat()
}

fn whole(number: usize) -> Vec<u8> {
    [&b"J"[..], &(number as i32).to_le_bytes()].concat()
}

fn tuple(numbers: &[usize]) -> Vec<u8> {
    let numbers = numbers.iter().flat_map(|&number| whole(number));
    [b'('].into_iter().chain(numbers).chain([b't']).collect()
}

fn pickle(tensors: &[Saved<'_>]) -> Vec<u8> {
    let mut code = b"\x80\x02}(".to_vec();
    code.extend([text("global_step"), whole(840_000)].concat());
    code.extend([text("state_dict"), b"}(".to_vec()].concat());
    for (number, tensor) in tensors.iter().enumerate() {
        code.extend(text(tensor.name));
        code.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        code.extend(text("storage"));
        code.extend_from_slice(b"ctorch\nHalfStorage\n");
        code.extend([text(&number.to_string()), text("cpu")].concat());
        let elements = tensor.shape.iter().product();
        code.extend([whole(elements), b"tQ".to_vec(), whole(0)].concat());
        let strides: Vec<usize> = (1..=tensor.shape.len())
            .map(|from| tensor.shape[from..].iter().product())
            .collect();
        code.extend([tuple(tensor.shape), tuple(&strides)].concat());
        code.extend_from_slice(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    code.extend_from_slice(b"uu.");
    code
}

/// A zip archive whose entries are stored as they are.
#[derive(Default)]
struct Archive {
    out: Vec<u8>,
    directory: Vec<u8>,
    entries: u16,
}

impl Archive {
    fn entry(&mut self, name: &str, content: &[u8]) {
        let at = (self.out.len() as u32).to_le_bytes();
        let length = (content.len() as u32).to_le_bytes();
        let name_length = (name.len() as u16).to_le_bytes();
        let stored = [[0; 12].as_slice(), &length, &length, &name_length].concat();
        self.out.extend_from_slice(b"PK\x03\x04\0\0");
        self.out.extend([stored.as_slice(), &[0; 2]].concat());
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(content);
        self.directory.extend_from_slice(b"PK\x01\x02\0\0\0\0");
        self.directory
            .extend([stored.as_slice(), &[0; 12], &at].concat());
        self.directory.extend_from_slice(name.as_bytes());
        self.entries += 1;
    }

    fn finish(mut self) -> Vec<u8> {
        let at = (self.out.len() as u32).to_le_bytes();
        let length = (self.directory.len() as u32).to_le_bytes();
        let count = self.entries.to_le_bytes();
        self.out.append(&mut self.directory);
        self.out.extend_from_slice(b"PK\x05\x06\0\0\0\0");
        self.out
            .extend([&count[..], &count, &length, &at, &[0; 2]].concat());
        self.out
    }
}
