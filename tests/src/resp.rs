//! Sends one inline command to a Redis or a Sentinel and reads the whole reply. Called by `redis` and `sentinel`. It
//! understands RESP2 only and opens a connection for each command.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// All values of the reply in order, with nested lists flattened; nils are left out.
pub(crate) async fn ask(address: SocketAddr, command: &str) -> io::Result<Vec<String>> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    stream.get_mut().write_all(format!("{command}\r\n").as_bytes()).await?;
    let mut values = Vec::new();
    let mut due = 1_u64;
    while due > 0 {
        due -= 1;
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (kind, rest) = line.trim_end().split_at_checked(1).ok_or(io::ErrorKind::InvalidData)?;
        let count = || rest.parse::<i64>().map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        match kind {
            "*" => due += u64::try_from(count()?).unwrap_or_default(),
            "$" => {
                if let Ok(length) = usize::try_from(count()?) {
                    let mut bytes = vec![0; length + 2];
                    stream.read_exact(&mut bytes).await?;
                    values.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
                }
            }
            "-" => return Err(io::Error::other(rest.to_owned())),
            _ => values.push(rest.to_owned()),
        }
    }
    Ok(values)
}
