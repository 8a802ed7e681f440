//! The client of an object store, and the asynchronous runtime that it needs, behind blocking calls.

use std::{
    fs::File,
    future::Future,
    io::Read,
    ops::Range,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use object_store::{
    Error, GetOptions, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, WriteMultipart, aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, path::Path as Key,
};
use tokio::runtime::Runtime;

use super::{BLOCK_BYTES, Location, Object, RemoteError, location::Provider};

/// More objects than any model has files.
const MOST_OBJECTS: usize = 10_000;
/// How often a request is made whose answer breaks off. Requests that are refused are retried by the client itself.
const ATTEMPTS: u32 = 4;
/// S3 takes at most 10 000 parts of an object.
const MOST_PARTS: u64 = 9_000;
/// Parts on their way at a time.
const PARTS_AT_ONCE: usize = 4;

/// A client for what lies below one location.
#[derive(Debug)]
pub(super) struct Store {
    client: Box<dyn ObjectStore>,
    location: Location,
    prefix: Key,
}

/// One runtime for the whole process: two threads move all bytes.
fn runtime() -> Result<&'static Runtime, String> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        // Fails only where one is installed already, which does as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).thread_name("store").enable_all().build().map_err(|error| error.to_string())
    });
    made.as_ref().map_err(Clone::clone)
}

impl Store {
    /// A client with what the environment says; nothing is asked of the store yet.
    pub(super) fn open(location: &Location) -> Result<Arc<Self>, RemoteError> {
        let failed = |message: String| RemoteError::Client { url: location.to_string(), message };
        runtime().map_err(failed)?;
        let url = location.bucket_url();
        let client = match location.provider {
            Provider::S3 => AmazonS3Builder::from_env().with_url(url).build().map(boxed),
            Provider::Google => GoogleCloudStorageBuilder::from_env().with_url(url).build().map(boxed),
            Provider::Azure => MicrosoftAzureBuilder::from_env().with_url(url).build().map(boxed),
        };
        let client = client.map_err(|error| failed(error.to_string()))?;
        let prefix = Key::parse(location.prefix()).map_err(|error| failed(error.to_string()))?;
        Ok(Arc::new(Self { client, location: location.clone(), prefix }))
    }

    /// All objects below the location, by name. Names that are no plain relative paths are passed over.
    pub(super) fn list(&self) -> Result<Vec<Object>, RemoteError> {
        let mut objects = Vec::new();
        let found = block(async {
            let mut listing = self.client.list(Some(&self.prefix));
            while let Some(meta) = std::future::poll_fn(|context| listing.as_mut().poll_next(context)).await {
                let meta = meta?;
                let Some(name) = meta.location.as_ref().strip_prefix(self.prefix.as_ref()) else { continue };
                let Some(name) = name.strip_prefix('/') else { continue };
                if name.split('/').any(|part| matches!(part, "" | "." | "..")) || name.contains(['\\', '\0']) {
                    continue;
                }
                objects.push(Object {
                    name: name.to_owned(),
                    bytes: meta.size,
                    e_tag: meta.e_tag,
                    version: meta.version,
                });
                if objects.len() > MOST_OBJECTS {
                    break;
                }
            }
            Ok(())
        });
        found.map_err(|error| self.failed("list", "", &error))?;
        if objects.len() > MOST_OBJECTS {
            return Err(RemoteError::TooMany { url: self.location.to_string(), most: MOST_OBJECTS });
        }
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    /// Bytes of an object, if it is still the one that was listed.
    pub(super) fn read(&self, object: &Object, range: Range<u64>) -> Result<Vec<u8>, RemoteError> {
        let runtime = runtime().map_err(|message| self.client_failed(message))?;
        runtime.block_on(self.fetch(object, range))
    }

    /// The same in the background.
    pub(super) fn read_later(
        self: &Arc<Self>,
        object: &Object,
        range: Range<u64>,
        then: impl FnOnce(Result<Vec<u8>, RemoteError>) + Send + 'static,
    ) {
        let (store, object) = (Arc::clone(self), object.clone());
        match runtime() {
            Ok(runtime) => drop(runtime.spawn(async move { then(store.fetch(&object, range).await) })),
            Err(message) => then(Err(self.client_failed(message))),
        }
    }

    async fn fetch(&self, object: &Object, range: Range<u64>) -> Result<Vec<u8>, RemoteError> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.fetch_once(object, range.clone()).await {
                Ok(bytes) => return Ok(bytes),
                Err(RemoteError::Request { .. }) if attempt < ATTEMPTS => {
                    tokio::time::sleep(Duration::from_millis(100 << attempt)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn fetch_once(&self, object: &Object, range: Range<u64>) -> Result<Vec<u8>, RemoteError> {
        let changed = |message: String| RemoteError::Changed { url: self.location.url_of(&object.name), message };
        // Weak tags match nothing; the answer's own tag is compared in any case.
        let if_match = object.e_tag.clone().filter(|tag| !tag.starts_with("W/"));
        let options = GetOptions {
            range: Some(range.clone().into()),
            if_match,
            version: object.version.clone(),
            ..GetOptions::default()
        };
        let answer = self.client.get_opts(&self.key(&object.name), options).await;
        let answer = answer.map_err(|error| match error {
            Error::Precondition { .. } => changed("it has another content".into()),
            Error::NotFound { .. } => changed("it is gone".into()),
            error => self.failed("read", &object.name, &error),
        })?;
        if answer.meta.size != object.bytes {
            return Err(changed(format!("it has {} bytes, and had {}", answer.meta.size, object.bytes)));
        }
        if answer.meta.e_tag != object.e_tag {
            return Err(changed("it has another content".into()));
        }
        let bytes = answer.bytes().await.map_err(|error| self.failed("read", &object.name, &error))?;
        if bytes.len() as u64 != range.end - range.start {
            let message = format!("{} bytes came of {range:?}", bytes.len());
            return Err(RemoteError::Request { doing: "read", url: self.location.url_of(&object.name), message });
        }
        Ok(bytes.into())
    }

    /// Writes a file's content as an object, in parts where it is long; gives its tag. What breaks off leaves no object.
    pub(super) fn write_file(&self, name: &str, path: &Path) -> Result<Option<String>, RemoteError> {
        let disk = |doing| RemoteError::disk(doing, path);
        let mut file = File::open(path).map_err(disk("open"))?;
        let bytes = file.metadata().map_err(disk("read"))?.len();
        let key = self.key(name);
        let failed = |error: Error| self.failed("write", name, &error);
        if bytes <= BLOCK_BYTES {
            let mut content = Vec::new();
            file.read_to_end(&mut content).map_err(disk("read"))?;
            let put = async { self.client.put_opts(&key, PutPayload::from(content), PutOptions::default()).await };
            return block(put).map(|put| put.e_tag).map_err(failed);
        }
        let part = BLOCK_BYTES.max(bytes.div_ceil(MOST_PARTS).next_multiple_of(1 << 20)) as usize;
        let upload = block(async { self.client.put_multipart_opts(&key, PutMultipartOptions::default()).await });
        let mut upload = WriteMultipart::new_with_chunk_size(upload.map_err(failed)?, part);
        let mut left = bytes;
        while left > 0 {
            // The client takes the memory: one buffer for each part.
            let mut piece = vec![0; (left as usize).min(part)];
            let read = file.read_exact(&mut piece).map_err(disk("read"));
            let room = block(async { upload.wait_for_capacity(PARTS_AT_ONCE - 1).await }).map_err(failed);
            if let Err(error) = read.and(room) {
                // Its parts cost storage; that they could not be removed is not the first thing that went wrong.
                let _ = block(async { upload.abort().await });
                return Err(error);
            }
            left -= piece.len() as u64;
            // Starting parts needs the runtime.
            let _ = block(async {
                upload.put(piece.into());
                Ok(())
            });
        }
        block(async { upload.finish().await }).map(|put| put.e_tag).map_err(failed)
    }

    /// Removes an object; that it is not there is no error.
    pub(super) fn delete(&self, name: &str) -> Result<(), RemoteError> {
        use object_store::ObjectStoreExt;
        match block(async { self.client.delete(&self.key(name)).await }) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("remove", name, &error)),
        }
    }

    fn key(&self, name: &str) -> Key {
        // What was listed is named as the store names it.
        let parts = self.prefix.parts().collect::<Vec<_>>();
        let below = Key::parse(name).unwrap_or_else(|_| Key::from(name));
        parts.into_iter().chain(below.parts()).collect()
    }

    fn client_failed(&self, message: String) -> RemoteError {
        RemoteError::Client { url: self.location.to_string(), message }
    }

    fn failed(&self, doing: &'static str, name: &str, error: &Error) -> RemoteError {
        let url = if name.is_empty() { self.location.to_string() } else { self.location.url_of(name) };
        RemoteError::Request { doing, url, message: short(&error.to_string()) }
    }
}

/// Waits for what the client does.
fn block<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match runtime() {
        Ok(runtime) => runtime.block_on(work),
        Err(message) => Err(Error::Generic { store: "client", source: message.into() }),
    }
}

fn boxed(client: impl ObjectStore) -> Box<dyn ObjectStore> {
    Box::new(client)
}

/// The first line of a store's answer, which may be a page of XML, without queries: those could be signed.
fn short(message: &str) -> String {
    const MOST_CHARACTERS: usize = 400;
    let line = message.lines().next().unwrap_or_default();
    let words =
        line.split(' ').map(|word| if word.contains("://") { word.split('?').next().unwrap_or(word) } else { word });
    words.collect::<Vec<_>>().join(" ").chars().take(MOST_CHARACTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn messages_are_short_and_without_queries() {
        assert_eq!(short("error for url (https://h/x?X-Amz-Signature=S) x\n<xml>"), "error for url (https://h/x x");
        assert_eq!(short(&"y".repeat(1000)).len(), 400);
    }
}
